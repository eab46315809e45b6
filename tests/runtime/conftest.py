from tests.defense.conftest import defense_for, images, model

__all__ = ["defense_for", "images", "model"]
