"""What the tests of engines are given is given here, too."""

from tests.engine.conftest import atlas_bundle, prompts, reader

__all__ = ["atlas_bundle", "prompts", "reader"]
