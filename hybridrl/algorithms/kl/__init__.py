"""Estimators of the KL divergence to the reference policy, one file each; x = logp - ref_logp."""
