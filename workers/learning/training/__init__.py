"""Training one adapter: the job folder, the child process that trains, and the service's end of it."""
