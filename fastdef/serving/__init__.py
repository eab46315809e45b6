"""A defended classifier on the network: one thread that keeps the slots full, and a web application before it."""

from fastdef.serving.app import application as application
from fastdef.serving.page import Page as Page
from fastdef.serving.page import make_token as make_token
from fastdef.serving.worker import Closed as Closed
from fastdef.serving.worker import Full as Full
from fastdef.serving.worker import Reply as Reply
from fastdef.serving.worker import Worker as Worker
