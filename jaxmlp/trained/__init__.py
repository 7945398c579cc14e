"""What does a trained model answer?"""
