"""Pre-training and fine-tuning: language models, text classifiers, networks layer by layer."""

from jaxrl_align.pretrain.layerwise import (
    AutoencoderHParams,
    ClassifierHParams,
    error_rate,
    finetune,
    fit,
    make_autoencoder_learner,
    make_classifier_learner,
    make_layer_autoencoders,
    pretrain_supervised,
    pretrain_unsupervised,
    reconstruct,
)
from jaxrl_align.pretrain.lm import (
    LMHParams,
    bits_per_byte,
    chat_batch,
    make_lm_learner,
    make_text_loss,
    next_token_objective,
    packed_batch,
    perplexity,
    predict_row,
    sample_mixture,
    sample_rows,
    sample_windows,
    stream_windows,
)
from jaxrl_align.pretrain.text_classification import (
    LabelledText,
    TextClassifierHParams,
    attach_head,
    classify,
    fit_head,
    make_text_classifier,
    mean_accuracy,
    mean_features,
)

# fmt: off
__all__ = [
    "AutoencoderHParams", "ClassifierHParams", "LMHParams", "LabelledText", "TextClassifierHParams",
    "attach_head", "bits_per_byte", "chat_batch", "classify", "error_rate", "finetune", "fit", "fit_head",
    "make_autoencoder_learner", "make_classifier_learner", "make_layer_autoencoders", "make_lm_learner",
    "make_text_classifier", "make_text_loss", "mean_accuracy", "mean_features", "next_token_objective",
    "packed_batch", "perplexity", "predict_row", "pretrain_supervised", "pretrain_unsupervised",
    "reconstruct", "sample_mixture", "sample_rows", "sample_windows", "stream_windows",
]
# fmt: on
