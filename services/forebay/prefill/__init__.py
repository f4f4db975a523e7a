"""The prefill worker: computes prompts and hands their sequences over."""
