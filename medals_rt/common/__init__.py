"""What every other folder uses: types, choices, arrays, files, the machine."""
