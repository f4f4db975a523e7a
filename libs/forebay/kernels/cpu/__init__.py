"""The native CPU implementation: a C++ library (`native/`), compiled when first needed, and its weights.

Start at `library.load_library` (the compiled code) and `packed_model.load_packed_model` (the weights in its layout).
"""
