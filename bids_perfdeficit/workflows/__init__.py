"""Nipype workflows: `init_*_wf` factories that marshal files between interfaces."""
