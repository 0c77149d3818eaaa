"""One module for each system: `run(job, processes)` starts it, has it do the job to its end, and checks the result."""
