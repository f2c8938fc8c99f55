"""An object store on loopback, for the tests of `trainer` and `sweeps`."""

import pytest


@pytest.fixture(scope="module")
def object_store():
    """A client of an S3 server that trainer.locations reaches too."""
    import boto3
    from moto.server import ThreadedMotoServer

    from trainer import locations

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    settings = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    locations._object_store.cache_clear()  # clients of another server
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    server.stop()
