"""What a run costs, from config.json alone: parameters, FLOPs, memory, hours, disk."""
