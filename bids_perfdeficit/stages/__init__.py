"""What a stage is, when it is done, and how its results and its record are kept.

The one definition for both levels. A stage is done only when its record agrees with the version,
the options, the inputs as they are now and the outputs on disk. Must not know Nipype, nor what a
stage computes.
"""
