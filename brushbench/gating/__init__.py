"""The quality gate: is a run worse than what was accepted? Policy, checks, verdict, accepted files. No torch."""

from brushbench.gating.accepted import Accepted, accept, accepted_names, load_accepted
from brushbench.gating.policy import Policy, load_policy
from brushbench.gating.verdict import Check, Verdict, gate

__all__ = ["Accepted", "Check", "Policy", "Verdict", "accept", "accepted_names", "gate", "load_accepted", "load_policy"]
