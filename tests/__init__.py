"""A package, so that a fixture of a folder may have the scope `package`."""
