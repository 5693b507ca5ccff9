"""What people meet first: a producer, a channel, four workers that share its records."""

import shmbus


def consume(rx):  # runs in its own process
    for message in rx:  # ends when every producer has closed
        print(f"{message['id']} squared is {message['id'] ** 2}")


if __name__ == "__main__":
    source = ({"id": number} for number in range(10))
    with shmbus.Bus() as bus:  # its own broker process; shmbus.connect("name") joins a running one
        jobs = bus.channel("jobs", capacity="64 MiB")
        bus.spawn(consume, jobs.consumer(group="workers"), count=4)
        with jobs.producer() as tx:
            for item in source:
                tx.send(item)
    # leaving: workers have drained and ended; a failed worker is raised here with its traceback
