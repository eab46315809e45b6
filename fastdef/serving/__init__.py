"""A defended classifier on the network: one thread that keeps the slots full, and a web application before it."""

from fastdef.serving.app import application as application
from fastdef.serving.batcher import Batcher as Batcher
from fastdef.serving.batcher import Full as Full
from fastdef.serving.batcher import Reply as Reply
