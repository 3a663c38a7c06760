"""Thin Nipype interfaces: traits in, files out, one domain call each."""
