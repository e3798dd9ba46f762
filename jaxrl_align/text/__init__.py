"""Text from language models: generation, and completions of prompts of any lengths."""

from jaxrl_align.text.completion import Completion, as_written, make_completer, make_streamer, stream
from jaxrl_align.text.generation import (
    DecodeState,
    Filters,
    Response,
    TextConfig,
    filter_logits,
    generate,
    sampling_logits,
)
from jaxrl_align.text.shared_prompt import (
    completion_log_probs,
    count_virtual_tokens,
    encode_completions,
    read_shared_tokens,
)

# fmt: off
__all__ = [
    "Completion", "DecodeState", "Filters", "Response", "TextConfig", "as_written",
    "completion_log_probs", "count_virtual_tokens", "encode_completions", "filter_logits", "generate",
    "make_completer", "make_streamer", "read_shared_tokens", "sampling_logits", "stream",
]
# fmt: on
