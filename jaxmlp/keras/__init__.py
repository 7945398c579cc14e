"""How does a network that Keras trained become a run?"""
