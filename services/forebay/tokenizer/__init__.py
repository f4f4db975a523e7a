"""The tokenizer service: text and conversations to token ids, and token ids back to text."""
