"""A model file told to people: its facts, a model card, and the Hugging Face hub."""

from fastdef.hub.card import Evidence as Evidence
from fastdef.hub.card import model_card as model_card
from fastdef.hub.describe import describe as describe
from fastdef.hub.known_answers import known_answers as known_answers
from fastdef.hub.known_answers import known_images as known_images
from fastdef.hub.push import push_to_hub as push_to_hub
