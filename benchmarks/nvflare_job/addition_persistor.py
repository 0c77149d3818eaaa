"""The server's first model, and its checkpoint after each round."""

from typing import Any

from addition import Job
from nvflare.app_common.abstract.model import ModelLearnable, ModelLearnableKey, make_model_learnable
from nvflare.app_common.abstract.model_persistor import ModelPersistor


class AdditionPersistor(ModelPersistor):
    """Models of the benchmark's job."""

    def load_model(self, fl_ctx: Any) -> ModelLearnable:
        """The model before the first round."""
        return make_model_learnable(Job.from_environment().initial_model(), {})

    def save_model(self, model: ModelLearnable, fl_ctx: Any) -> None:
        """Write the average of a round."""
        Job.from_environment().checkpoint(model[ModelLearnableKey.WEIGHTS])
