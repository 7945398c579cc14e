"""What is in an experiment's file, and which code is a run made of?"""
