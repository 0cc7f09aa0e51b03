"""The modelling code that travels with a converted model.

Each `modeling_*.py` here is copied as it stands into the folders of models that need it, so it imports torch
and transformers alone. It offers `install(model, options)`: exchange the parts of a freshly built stock
model, before its weights are loaded, according to `config.tricksmith[<name>]`.
"""
