"""A page to look at: an image as it is seen, noised and smoothed, what is answered, and the demo's model attacked."""

from fastdef.serving.page.access import link as link
from fastdef.serving.page.access import make_token as make_token
from fastdef.serving.page.routes import Page as Page
from fastdef.serving.page.routes import page_routes as page_routes
