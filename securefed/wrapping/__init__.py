"""Your own training code, made private: a plain loop, a Hugging Face Trainer, any code in a federation."""
