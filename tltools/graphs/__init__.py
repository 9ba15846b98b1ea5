"""ONNX graphs: write them from PyTorch, check them, convert them to int8 or fp16."""
