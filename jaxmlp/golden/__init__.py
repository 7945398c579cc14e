"""Does anyone's code still compute the recorded bits? A pytest plugin compares trees of arrays with stored records."""
