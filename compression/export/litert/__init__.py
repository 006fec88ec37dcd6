"""How is a graph of ONNX written as a .tflite file?"""
