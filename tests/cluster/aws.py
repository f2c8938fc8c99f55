"""Brings the machines of a configuration up at a counterfeit of AWS, by Ray's own code, and prints them as JSON.

python aws.py CONFIG
"""

import copy
import json
import sys
from pathlib import Path

import boto3
import yaml
from moto import mock_aws
from ray.autoscaler._private import commands
from ray.autoscaler._private.providers import _get_node_provider

with mock_aws():
    text = Path(sys.argv[1]).read_text()
    config = yaml.safe_load(text)
    ec2 = boto3.client("ec2", config["provider"]["region"])
    iam = boto3.client("iam")
    for name in ("heatmap-sweeps-head", "heatmap-sweeps-worker"):
        iam.create_instance_profile(InstanceProfileName=name)
    image = ec2.describe_images()["Images"][0]["ImageId"]
    zone = config["provider"]["availability_zone"]
    subnet = ec2.describe_subnets(Filters=[{"Name": "availability-zone", "Values": [zone]}])["Subnets"][0]
    group = ec2.create_security_group(GroupName="mine", Description="mine", VpcId=subnet["VpcId"])["GroupId"]
    for example, real in (
        ("ami-0123456789abcdef0", image),
        ("subnet-0123456789abcdef0", subnet["SubnetId"]),
        ("sg-0123456789abcdef0", group),
    ):
        text = text.replace(example, real)
    made = commands._bootstrap_config(yaml.safe_load(text), no_config_cache=True)
    provider = _get_node_provider(made["provider"], made["cluster_name"])
    for name, kind in made["available_node_types"].items():
        tags = {"ray-node-type": "head" if name == "head" else "worker", "ray-user-node-type": name}
        provider.create_node(copy.deepcopy(kind["node_config"]), tags, 1)
    machines = {}
    for reservation in ec2.describe_instances()["Reservations"]:
        for machine in reservation["Instances"]:
            tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
            machines[tags["ray-user-node-type"]] = {
                "groups": [found["GroupId"] for found in machine["SecurityGroups"]] == [group],
                "profile": machine["IamInstanceProfile"]["Arn"].rpartition("/")[2],
                "spot": machine.get("InstanceLifecycle") == "spot",
                "tokens": machine["MetadataOptions"]["HttpTokens"],
            }
    print(json.dumps(machines))
