"""The registered model as MLflow loads it: a *model from code* over a model file, without any pickle.

MLflow copies this file and the modules of ``tasks`` that it needs into the model, so it is served where fedbench is not
installed. The input is the column ``image`` (base64 of a JPEG, PNG, …). The output has the detections of each image,
best first: class, score and box (xmin, ymin, xmax, ymax in pixels of that image).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from tasks.models.answer_request import ModelAnswers, RequestRefused
from tasks.models.file import load_model


class ServedDetector(PythonModel):
    """A detector as MLflow's Python model. ``model_config`` has ``nms_iou``.

    ``params`` of a request: ``score_threshold``, and ``max_detections`` an image.
    """

    answers: ModelAnswers

    def load_context(self, context: PythonModelContext) -> None:
        """Read the model file, once a process.

        Raises:
            DataError: the file is damaged.
        """
        detector, card = load_model(Path(context.artifacts["model"]))
        self.answers = ModelAnswers(detector, card.classes, nms_iou=context.model_config["nms_iou"], exif=card.exif)

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return ``{"detections": [...]}`` for each image. MLflow has filled in the signature's default ``params``.

        Raises:
            MlflowException: an image or a parameter cannot be used (HTTP 400), or there are too many images (413);
                the message names the row or parameter.
        """
        try:
            return self.answers.answer(list(model_input["image"]), **(params or {}))
        except RequestRefused as error:
            raise (TooLarge if error.too_large else MlflowException).invalid_parameter_value(str(error)) from None


class TooLarge(MlflowException):
    """A request beyond a limit. MLflow has no error code with HTTP status 413."""

    def get_http_status_code(self) -> int:
        return 413


mlflow.models.set_model(ServedDetector())
