"""The oracle: reads the folder of a run and says what was broken.

It shares no code with the product but the messages generated from the .proto files: it imports the standard library,
google.protobuf and orderflow, nothing else. A test checks that.
"""
