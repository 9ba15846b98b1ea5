"""ONNX files as graphs: write them from PyTorch, check them, make them int8 or fp16."""
