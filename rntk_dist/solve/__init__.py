"""Solvers on Gram matrices, and the choice among them."""
