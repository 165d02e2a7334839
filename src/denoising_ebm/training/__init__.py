"""Training: objectives (batch -> loss), the averaged weights, the state of a run, and the loop."""
