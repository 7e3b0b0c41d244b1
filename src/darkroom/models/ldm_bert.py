"""The text encoder of the first latent diffusion model: a transformer over BERT's tokens (Rombach et al. 2022, appendix E.2.1)."""

from __future__ import annotations
from typing import Any
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput
from ..errors import InputError

__all__ = ["LDMBertConfig", "LDMBertModel"]


class LDMBertConfig(PretrainedConfig):
    """The keys of the network's `config.json`."""

    model_type = "ldmbert"
    attribute_map = {"num_attention_heads": "encoder_attention_heads", "hidden_size": "d_model"}

    def __init__(
        self, vocab_size: int = 30522, max_position_embeddings: int = 77, encoder_layers: int = 32, encoder_ffn_dim: int = 5120,
        encoder_attention_heads: int = 8, head_dim: int = 64, encoder_layerdrop: float = 0.0, activation_function: str = "gelu",
        d_model: int = 1280, dropout: float = 0.1, attention_dropout: float = 0.0, activation_dropout: float = 0.0, init_std: float = 0.02,
        classifier_dropout: float = 0.0, scale_embedding: bool = False, use_cache: bool = True, pad_token_id: int = 0, **options: Any,
    ):  # fmt: skip
        given = {name: value for name, value in locals().items() if name not in ("self", "options", "pad_token_id", "__class__")}
        self.__dict__.update(given)
        self.num_hidden_layers = encoder_layers
        options.pop("num_hidden_layers", None)
        super().__init__(pad_token_id=pad_token_id, **options)


class Attention(nn.Module):
    """Self-attention of tokens (B, N, C); `mask` is True where a token may be looked at."""

    def __init__(self, c: LDMBertConfig):
        super().__init__()
        inner = c.encoder_attention_heads * c.head_dim
        self.heads, self.dropout = c.encoder_attention_heads, c.attention_dropout
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(c.d_model, inner, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(inner, c.d_model)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        out = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, h, N, d)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, c: LDMBertConfig):
        super().__init__()
        self.self_attn, self.self_attn_layer_norm = Attention(c), nn.LayerNorm(c.d_model)
        self.fc1, self.fc2 = nn.Linear(c.d_model, c.encoder_ffn_dim), nn.Linear(c.encoder_ffn_dim, c.d_model)
        self.final_layer_norm = nn.LayerNorm(c.d_model)
        self.act, self.inner_dropout, self.dropout = ACT2FN[c.activation_function], nn.Dropout(c.activation_dropout), nn.Dropout(c.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.dropout(self.self_attn(self.self_attn_layer_norm(x), mask))
        return x + self.dropout(self.fc2(self.inner_dropout(self.act(self.fc1(self.final_layer_norm(x))))))


class Encoder(nn.Module):
    def __init__(self, c: LDMBertConfig):
        super().__init__()
        self.embed_tokens, self.embed_positions = nn.Embedding(c.vocab_size, c.d_model), nn.Embedding(c.max_position_embeddings, c.d_model)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.encoder_layers))
        self.layer_norm, self.dropout = nn.LayerNorm(c.d_model), nn.Dropout(c.dropout)


class LDMBertModel(PreTrainedModel):
    """Tokens to states, each token seeing all others."""

    config_class = LDMBertConfig
    base_model_prefix = "model"
    _no_split_modules: list[str] = []

    def __init__(self, config: LDMBertConfig):
        super().__init__(config)
        self.model = Encoder(config)
        self.to_logits = nn.Linear(config.d_model, config.vocab_size)  # of the checkpoint; not used
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.init_std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None, output_hidden_states: bool | None = None, return_dict: bool | None = None,
    ) -> Any:  # fmt: skip
        """Normed last states (B, N, C) of tokens (B, N) or of their embeddings; with `output_hidden_states` those before each layer, too.
        `attention_mask` (B, N) is 0 for tokens that are not looked at. Raises InputError unless tokens or embeddings are given.
        """
        net = self.model
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("Tokens are given once.", where="input_ids, inputs_embeds", expected="one of the two")
        x = net.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        places = torch.arange(x.shape[1], device=x.device)[None] if position_ids is None else position_ids
        x = net.dropout(x + net.embed_positions(places))
        mask = None if attention_mask is None else attention_mask[:, None, None].bool()  # (B, 1, 1, N)
        states = [x]
        for layer in net.layers:
            states.append(layer(states[-1], mask))
        last = net.layer_norm(states[-1])
        kept = (*states[:-1], last) if output_hidden_states else None
        found = BaseModelOutput(last_hidden_state=last, hidden_states=kept)  # type: ignore[arg-type]
        return found.to_tuple() if return_dict is False else found
