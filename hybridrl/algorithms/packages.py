"""The package of each kind of plug-in."""

PACKAGES = {
    "estimator": "hybridrl.algorithms.estimators",
    "policy_loss": "hybridrl.algorithms.policy_losses",
    "kl": "hybridrl.algorithms.kl",
    "aggregate": "hybridrl.algorithms.aggregates",
    "shaping": "hybridrl.algorithms.shaping",
    "correction": "hybridrl.algorithms.corrections",
    "value_loss": "hybridrl.algorithms.value_losses",
}
