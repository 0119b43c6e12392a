"""Byte tokenizers with the special tokens of chat formats, and short chat templates in their manner."""

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from hybridrl.data.tokenize import ModelTokenizer

_CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>")
_TOOLS = """{%- if tools %}{{- '<|im_start|>system\n# Tools\n' }}{%- for tool in tools %}{{- tool | tojson }}
{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}"""

CHATML = (
    _TOOLS
    + """{%- for m in messages %}
{%- if m.role == 'tool' %}{{- '<|im_start|>user\n<tool_response>\n' + m.content }}
{{- '\n</tool_response><|im_end|>\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content }}
{%- for call in m.tool_calls or [] %}{{- '<tool_call>\n{"name": "' + call.function.name + '", ' }}
{{- '"arguments": ' }}{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}
{{- '<|im_end|>\n' }}{%- endif %}
{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
)
"""Calls between marks, as Hermes and Qwen write them."""

HEADERS = """{%- for m in messages %}
{%- if m.tool_calls %}{{- '<|start|>assistant<|mid|>\n\n{"name": "' + m.tool_calls[0].function.name }}
{{- '", "parameters": ' }}{{- m.tool_calls[0].function.arguments | tojson }}{{- '}<|eot|>' }}
{%- else %}{{- '<|start|>' + ('ipython' if m.role == 'tool' else m.role) + '<|mid|>\n\n' }}
{{- m.content + '<|eot|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|mid|>\n\n' }}{%- endif %}"""
"""A call is a JSON object alone, as Llama 3 writes it."""

THINKING = """{%- if tools or messages[0].role == 'system' %}{{- '<|im_start|>system\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}
{%- if tools %}{{- '\n\n' if messages[0].role == 'system' }}{{- tool_text }}{%- for tool in tools %}
{{- '\n' + (tool | tojson) }}{%- endfor %}{{- call_text }}{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}
{%- for m in messages %}{%- if m.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
{%- elif m.role != 'system' %}{{- '<|im_start|>' + m.role + '\n' }}
{{- m.content.split('</think>')[-1].lstrip('\n') }}
{%- for call in m.tool_calls or [] %}{{- '<tool_call>\n{"name": "' + call.function.name + '", ' }}
{{- '"arguments": ' }}{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}
{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
"""In the manner of Qwen3: thinking of earlier answers is left out. `thinking_template` fills in its texts."""

BARE = """{%- for m in messages %}{{- '[' + m.role + ']' + m.content }}
{%- if m.role == 'assistant' %}{{- '<|end|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '[assistant]' }}{%- endif %}"""
"""No format for calls."""

DROPS_THINKING = """{%- set last = messages | length - 1 %}{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and loop.index0 == last %}{{- '<think></think>' }}{%- endif %}
{{- m.content + '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
"""The last answer is written otherwise than earlier ones."""

COUNTS = """{{- messages | length }}{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content }}
{{- '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
"""The opening depends on how many messages follow."""

LINES = """{%- for m in messages %}{{- m.role + ': ' + m.content + '\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}"""
"""A line break ends an answer, and is a token of any text."""

TOKENS = {
    CHATML: _CHATML,
    HEADERS: ("<|start|>", "<|mid|>", "<|eot|>"),
    BARE: ("<|end|>",),
    DROPS_THINKING: _CHATML,
    COUNTS: _CHATML,
    LINES: ("<|end|>",),
}
_ENDS = {CHATML: "<|im_end|>", HEADERS: "<|eot|>", DROPS_THINKING: "<|im_end|>", COUNTS: "<|im_end|>"}


def tokenizer_of(template: str, special: tuple[str, ...] | None = None) -> ModelTokenizer:
    """A tokenizer whose tokens are bytes and the special tokens of a chat format."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(BPE({c: i for i, c in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokens = TOKENS[template] if special is None else special
    made.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    end = _ENDS.get(template, tokens[-1] if special is None else special[1])
    hf = PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end)
    hf.chat_template = template
    return ModelTokenizer(hf, (hf.get_vocab()[end],))


def thinking_tokenizer() -> ModelTokenizer:
    """A tokenizer of THINKING with the texts that the library renderers writes around tools."""
    from renderers import qwen3

    special = ("<think>", "</think>", "<tool_response>", "</tool_response>", *_CHATML)
    made = tokenizer_of(THINKING, ("<|im_start|>", "<|im_end|>", *(t for t in special if "|im_" not in t)))
    texts = [_jinja_string(text) for text in (qwen3._TOOLS_HEADER, qwen3._TOOLS_FOOTER)]
    made.hf.chat_template = THINKING.replace("tool_text", texts[0]).replace("call_text", texts[1])
    return made


def _jinja_string(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
