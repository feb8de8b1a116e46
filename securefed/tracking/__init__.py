"""What a run tells those who watch it: the result folder, a person's terminal, TensorBoard, Weights & Biases."""
