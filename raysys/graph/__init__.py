"""The user-item graph: sparse matrices, propagation and sampling."""
