"""What does the host do while the device trains?"""
