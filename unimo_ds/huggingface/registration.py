"""Registers this family with the Auto classes of transformers. Each function may be called repeatedly."""

from __future__ import annotations

from unimo_ds.huggingface.configuration import UnimoConfig


def register_configuration() -> None:
    """`AutoConfig`."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    CONFIG_MAPPING.register(UnimoConfig.model_type, UnimoConfig, exist_ok=True)


def register_image_processor() -> None:
    """`AutoImageProcessor`: registered by name as soon as it can be requested: its file is read without a configuration."""
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    from unimo_ds.huggingface.image_processing import UnimoImageProcessor

    IMAGE_PROCESSOR_MAPPING.register(UnimoConfig, {"pil": UnimoImageProcessor}, exist_ok=True)  # type: ignore[arg-type]


def register_processor() -> None:
    """`AutoProcessor`, likewise."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    from unimo_ds.huggingface.processing import UnimoProcessor

    PROCESSOR_MAPPING.register(UnimoConfig, UnimoProcessor, exist_ok=True)  # type: ignore[arg-type]


def register_models() -> None:
    """`AutoModel` and the Auto classes of the heads."""
    import transformers

    from unimo_ds.huggingface import heads, modeling

    for auto, model in (
        (transformers.AutoModel, modeling.UnimoModel),
        (transformers.AutoModelForPreTraining, modeling.UnimoForPreTraining),
        (transformers.AutoModelForMaskedLM, modeling.UnimoForMaskedLM),
        (transformers.AutoModelForSeq2SeqLM, heads.UnimoForConditionalGeneration),
        (transformers.AutoModelForImageTextToText, heads.UnimoForConditionalGeneration),
        (transformers.AutoModelForSequenceClassification, heads.UnimoForSequenceClassification),
        (transformers.AutoModelForVisualQuestionAnswering, heads.UnimoForVisualQuestionAnswering),
    ):
        auto.register(UnimoConfig, model, exist_ok=True)
