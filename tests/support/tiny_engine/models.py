"""What a tiny engine computes with: the logits after a text, from parameters that a swap writes into."""

import numpy as np
import torch

_DECAY = 0.5


class Recurrent:
    """One embedding and one linear layer, of a model folder of any family: quick, with a short oracle.

    The state of a text is half the state of the text before its last token, plus that token's embedding;
    logits are the output layer times the state.
    """

    def __init__(self, folder, parameters):
        self._parameters = parameters

    def logits(self, text):
        embedding = self._parameters["model.embed_tokens.weight"]
        state = torch.zeros(embedding.shape[1])
        for token in text:
            state = state * _DECAY + embedding[token]
        return _head(self._parameters) @ state


class Transformer:
    """The model of the folder as transformers computes it: what a trainer trains."""

    def __init__(self, folder, parameters):
        from transformers import AutoConfig, AutoModelForCausalLM

        self._network = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder), dtype=torch.float32
        )
        for name, parameter in self._network.named_parameters():
            parameter.data = parameters[name]

    def logits(self, text):
        with torch.no_grad():
            return self._network(torch.tensor([text])).logits[0, -1]


def logp_of(parameters, text, temperature=1.0):
    """Log-probability of each token of a text given those before it, [len(text)]; 0 for the first. The oracle
    of an engine with these parameters and the model Recurrent.
    """
    embedding = parameters["model.embed_tokens.weight"]
    head, state, found = _head(parameters), torch.zeros(embedding.shape[1]), [0.0]
    for before, token in zip(text, text[1:]):
        state = state * _DECAY + embedding[before]
        found.append(float((head @ state / temperature).log_softmax(-1)[token]))
    return np.array(found, np.float32)


def _head(parameters):
    return parameters.get("lm_head.weight", parameters["model.embed_tokens.weight"])
