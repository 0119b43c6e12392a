"""What rules of a config refuse."""

from hybridrl.config.load import load
from hybridrl.config.rules import RuleContext


def refusals(path, overrides, rules):
    """The errors of these rules on a config file with overrides, as text."""
    loaded, context = load(path, overrides), RuleContext(num_gpus=0, spec=None)
    return [str(error) for rule in rules for error in rule(loaded, context)]
