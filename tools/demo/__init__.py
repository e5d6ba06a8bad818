"""The pieces of `train_demo.py`: corpus, tokenizer, training and evaluation of the demo checkpoint."""
