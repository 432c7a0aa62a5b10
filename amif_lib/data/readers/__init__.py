"""One file per data set: `read(root, layout, ...)` turns its official layout into records.

`root` is the set's folder, `layout` the manifest's paths under it; readers of question sets also take `training_file`,
one of the module's `TRAINING_FILES`.
"""
