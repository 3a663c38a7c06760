"""What a stage of a run is, and what became of it. Must not know Nipype."""
