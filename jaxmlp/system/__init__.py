"""What does the system around the process do: devices, processes, signals, compilers?"""
