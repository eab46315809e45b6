"""From a model to results: the traced step, slots that are refilled, and the Session that runs requests on them."""
