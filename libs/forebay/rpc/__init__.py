"""gRPC manners shared by every service: errors as status, deadlines passed on, traces carried, health and drain."""
