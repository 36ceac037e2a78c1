"""What is true: pure functions. Nothing here touches disk, network, clock or device."""
