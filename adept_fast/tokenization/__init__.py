"""Where a tokenizer's ids come from: a sentencepiece model, or a tokenizer.json, and tokens added to them."""
